import pytest

from raymlops.errors import ConfigError


@pytest.mark.parametrize("port", [0, 80, 6379, 8080, 8265, 52365, 10001, 19999])
def test_a_port_of_ray_is_not_the_proxys(place, port):
    """Both would listen there in one pod."""
    with pytest.raises(ConfigError, match=rf"serve\.port: got {port}"):
        place(f"serve.port={port}")
    assert place("serve.port=8001").spec.serve.port == 8001


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.gpus_per_worker=4.0", r"train\.gpus_per_worker: got 4, more than a node of kubernetes.gpu has: .* 1"),
        ("serve.gpus_per_replica=2.0", r"serve\.gpus_per_replica: got 2, more"),
        ("train.cpus_per_worker=9.0", r"train\.cpus_per_worker: got 9, more than a node of kubernetes.cpu has: .* 7"),
        ("serve.cpus_per_replica=9.0", r"serve\.cpus_per_replica: got 9, more"),
        ("serve.memory_gb=35.0", r"serve\.memory_gb: got 35, more than a node of kubernetes.cpu has: .* 28"),
    ],
)
def test_what_fits_on_no_node_is_refused(place, override, message):
    """The autoscaler would add none, and work would wait for ever."""
    with pytest.raises(ConfigError, match=message):
        place(override)


@pytest.mark.parametrize("path", ["state_url", "/etc/a:b", "/srv/../etc/url", "~", "/etc/raymlops/project.yaml"])
def test_a_file_of_the_secret_has_a_path_that_can_be_mounted(place, path):
    """A relative one is that of a machine elsewhere."""
    with pytest.raises(ConfigError, match=r"storage\.state: got .*; a whole path in the pods"):
        place(f'storage.state.file="{path}"')


def test_a_file_of_the_state_alone_is_the_states(place):
    """Workers would not have it."""
    with pytest.raises(ConfigError, match=r"storage\.optuna: got .*, the state's, which only the head has"):
        place('storage.optuna={"file": "/home/ray/state_url"}')


@pytest.mark.parametrize("name", ["A B", "RAY_AUTH_TOKEN", "REDIS_PASSWORD", "HOME", "RAYMLOPS_STATE_URL"])
def test_a_variable_of_the_secret_is_the_configurations(place, name):
    """A container has it for something else, or no shell can set it."""
    with pytest.raises(ConfigError, match=rf"storage\.optuna: got {{env: {name}}}"):
        place(f'storage.optuna={{"env": "{name}"}}')


@pytest.mark.parametrize(
    "path", ["/", "/home/ray", "/home", "/opt/raymlops/data", "/etc/raymlops", "/tmp", "/srv/a:b", "x"]
)
def test_a_folder_hides_nothing_that_a_pod_needs(place, path):
    """As a volume at its program or its configuration would."""
    with pytest.raises(ConfigError, match=r"storage\.path: got .*; a bucket's URI, or"):
        place(f'storage.path="{path}"')
    assert place("storage.path=/srv/models/").folder == "/srv/models/"


def test_a_name_begins_with_a_letter(place):
    """KubeRay's rule, by RFC 1035."""
    with pytest.raises(ConfigError, match=r"project\.name: got '9lives'"):
        place("project.name=9lives")


@pytest.mark.parametrize("host", ["a..b", "10.0.0.1", "-a.example.com", "a" * 64 + ".com", "A.example.com"])
def test_a_host_is_a_name(place, host):
    """An Ingress takes no address."""
    with pytest.raises(ConfigError, match=r"kubernetes\.host"):
        place(f'kubernetes.host="{host}"')
    assert place("kubernetes.host=a-1.example.com").section.host == "a-1.example.com"
