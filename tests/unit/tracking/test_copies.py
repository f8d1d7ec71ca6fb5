"""Which of MLflow's tables travel in a backup."""

from raymlops.tracking.copies import tracking_tables


def test_no_table_of_credentials_travels_nor_one_that_refers_to_such():
    """Each table that travels comes after those that it refers to, which travel too."""
    names = [table.name for table in tracking_tables().tables]
    assert {"secrets", "model_definitions", "endpoints", "guardrail_configs", "webhooks", "jobs"} & set(names) == set()
    assert {"experiments", "runs", "metrics", "tags", "model_versions", "registered_model_aliases"} <= set(names)
    for place, table in enumerate(tracking_tables().tables):
        others = {key.column.table.name for key in table.foreign_keys} - {table.name}
        assert others <= set(names[:place])
