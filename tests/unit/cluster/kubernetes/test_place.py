import pytest
from kuberay import refusals

from raymlops.cluster.kubernetes.place import Place, label


def test_a_label_is_itself():
    """Where Kubernetes takes it."""
    assert label("flights-eu-2", 35) == "flights-eu-2"


@pytest.mark.parametrize("text", ["prod_eu", "Prod.EU", "prod-eu-", "prod-eu" * 9, "prod-eu" * 9 + "-west"])
def test_what_is_no_label_gets_a_digest(text):
    """So that no two texts are one label."""
    found = label(text, 35)
    assert found.startswith("prod-eu")
    assert len(found) <= 35
    assert found == label(found, 35) != label(f"{text}x", 35)


def test_projects_that_differ_in_a_character_are_not_the_same_objects(place, objects):
    """my_model and my-model, in one namespace."""
    one, other = (
        {(o["kind"], o["metadata"].get("name", "")) for o in objects(p)} - {("RayJob", "")}
        for p in (place("project.name=my_model"), place("project.name=my-model"))
    )
    assert one & other == set()


@pytest.mark.parametrize("name", ["a" * 35, "a" * 36, "a" * 63, "my_" * 15 + "model"])
def test_every_name_has_jobs_that_kuberay_takes(place, objects, name):
    """A RayJob's name has a verb more than the RayService's, and five characters of Kubernetes."""
    assert [said for one in objects(place(f"project.name={name}")) for said in refusals(one)] == []


def test_no_two_projects_are_in_one_namespace(place):
    """Wherever their names and those of the environments are divided."""
    words = ["a", "b", "c", "prod"]
    divided = [("-".join(words[:n]), "-".join(words[n:])) for n in (1, 2, 3)]
    divided += [("a", None), ("a-b-c-prod", None), ("a-b-c", None)]
    found = [Place(place(f"project.name={name}").spec, env, "") for name, env in divided]
    assert len({one.namespace for one in found}) == 6
    assert [one.namespace for one in found[2:4]] == ["a-b-c-prod", "a"]


@pytest.mark.parametrize(("env", "namespace"), [("prod", "flights-prod"), ("prod_eu", "flights-prod-eu-")])
def test_a_namespace_is_a_label(place, env, namespace):
    """Whatever the environment is called; its own name where that is one."""
    found = place()
    found = type(found)(found.spec, env, found.image)
    assert found.namespace.startswith(namespace)
    assert found.namespace == label(found.namespace, 63)


def test_the_command_that_makes_the_secret_leaves_out_line_ends(place):
    """Of what goes into variables, which Ray, Redis and KubeRay take as it is; files may have lines."""
    assert place("tracking.uri=http://mlflow:5000", "tracking.username=null", "tracking.password=null").create_secret(
        "models"
    ) == (
        "kubectl -n models create secret generic raymlops "
        '--from-literal=RAYMLOPS_OPTUNA_URL="$(cat FILE)" --from-literal=auth_token="$(cat FILE)" '
        '--from-literal=redis_password="$(cat FILE)" --from-file=state_url=FILE'
    )
