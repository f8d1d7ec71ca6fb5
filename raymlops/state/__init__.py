"""raymlops' own tables: what should be live, and the audit of every change."""
