"""Which files of a recipe travel."""

from __future__ import annotations

import pytest

from raymlops import __version__
from raymlops.bundle.code import MAX_DATA_BYTES, MAX_NAMED_BYTES, MAX_TOTAL_BYTES, Code, collect
from raymlops.errors import RecipeError
from raymlops.recipe import RecipeBase

RECIPE = """
from raymlops.recipe import RecipeBase
import numpy
class Shop(RecipeBase): ...
"""


def test_a_module_takes_its_file_and_what_it_imports_beside_it(imported):
    """Also an import in a function, and what that module imports; installed modules and neighbours stay."""
    shop = imported(
        "shop:Shop",
        {
            "shop.py": RECIPE + "def encode():\n    from features import x\n",
            "features.py": "import scales.robust\nx = 1\n",
            "scales/__init__.py": "",
            "scales/robust.py": "",
            "scales/data.json": "{}",
            "unrelated.py": "",
        },
    )

    assert list(collect(shop).files) == [
        "features.py",
        "scales/__init__.py",
        "scales/data.json",
        "scales/robust.py",
        "shop.py",
    ]


def test_a_package_travels_whole_but_for_what_a_replica_never_needs(imported):
    """Sources and small data files; no tests, caches, hidden folders, other files or secrets."""
    shop = imported(
        "shop.recipe:Shop",
        {
            "shop/__init__.py": "",
            "shop/recipe.py": RECIPE,
            "shop/deep/vocabulary.txt": "a b",
            "shop/deep/computed_at_run_time.py": "",
            "shop/tests/test_recipe.py": "",
            "shop/__pycache__/old.py": "",
            "shop/.venv/lib.py": "",
            "shop/model.pkl": "",
            "shop/README.md": "",
            "shop/client_secrets.json": "{}",
            "shop/train.csv": "x" * (MAX_DATA_BYTES + 1),
            "beside.py": "",
        },
    )

    code = collect(shop)

    assert list(code.files) == [
        "shop/__init__.py",
        "shop/deep/computed_at_run_time.py",
        "shop/deep/vocabulary.txt",
        "shop/recipe.py",
    ]
    assert code.left_out == ("shop/client_secrets.json", "shop/model.pkl", "shop/train.csv")
    assert code.notice() == (
        "a replica gets the recipe's code without shop/client_secrets.json, shop/model.pkl, shop/train.csv: "
        "if it reads such a file, name it in the recipe's package_data"
    )


def test_a_folder_without_init_gives_only_the_modules_that_are_imported(imported):
    """Such a folder belongs to nobody: other examples in it stay behind."""
    shop = imported(
        "examples.shop:Shop",
        {
            "examples/shop.py": RECIPE + "from . import features\nfrom .scales import s\nimport examples.units\n",
            "examples/features.py": "",
            "examples/scales.py": "s = 1",
            "examples/units.py": "",
            "examples/other.py": "",
        },
    )

    assert list(collect(shop).files) == [
        "examples/features.py",
        "examples/scales.py",
        "examples/shop.py",
        "examples/units.py",
    ]


def test_a_library_installed_into_a_folder_is_no_code_of_the_recipe(tmp_path, monkeypatch, request):
    """As by ``pip install --target`` on PYTHONPATH; a package beside it that no distribution owns travels."""
    folder = tmp_path / "libraries"
    (folder / "a_library-1.5.dist-info").mkdir(parents=True)
    (folder / "a_library-1.5.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: a-library\nVersion: 1.5\n")
    (folder / "a_library-1.5.dist-info/top_level.txt").write_text("a_library\n")
    (folder / "a_library-1.5.dist-info/RECORD").write_text("a_library.py,,\n")
    (folder / "a_library.py").touch()
    (folder / "a_module.py").touch()
    monkeypatch.syspath_prepend(folder)
    imported = request.getfixturevalue("imported")
    shop = imported("shop:Shop", {"shop.py": RECIPE + "import a_library\nimport a_module\n"})
    assert sorted(collect(shop).files) == ["a_module.py", "shop.py"]


def test_two_modules_that_import_each_other_travel_once(imported):
    """The walk ends."""
    shop = imported(
        "shop:Shop", {"shop.py": RECIPE + "import features\n", "features.py": "def f():\n    import shop\n"}
    )

    assert list(collect(shop).files) == ["features.py", "shop.py"]


def test_code_that_comes_with_raymlops_does_not_travel():
    """The bundle names the version instead."""
    code = collect(RecipeBase)

    assert (code.files, code.distribution, code.version) == ({}, "raymlops", __version__)


def test_an_installed_package_travels_and_is_named():
    """Distribution and version are for the reader; the code is there in case another version is installed."""
    klass = type("Recipe", (RecipeBase,), {"__module__": "iniconfig"})

    code = collect(klass)

    assert "iniconfig/__init__.py" in code.files
    assert code.distribution == "iniconfig"
    assert code.version


def test_code_that_is_too_large_names_the_file(imported):
    """Data in sources belongs elsewhere."""
    shop = imported("shop:Shop", {"shop.py": RECIPE + "#" * MAX_TOTAL_BYTES})

    with pytest.raises(RecipeError, match=r"larger than 16 MiB, at .*shop\.py"):
        collect(shop)


def test_a_class_without_a_source_file_is_refused():
    """Typed into an interpreter, it cannot be found again."""
    klass = type("Recipe", (RecipeBase,), {"__module__": "nowhere_to_be_found"})

    with pytest.raises(RecipeError, match="module nowhere_to_be_found has no source file"):
        collect(klass)


def test_equal_code_has_an_equal_digest(imported):
    """It says which code a run was trained with: any change of what travels changes it, a neighbour does not."""
    files = {"shop.py": RECIPE + "import features\n", "features.py": "x = 1\n"}
    first = collect(imported("shop:Shop", files))
    same = collect(imported("shop:Shop", files | {"unrelated.py": "y = 2\n"}))
    changed = collect(imported("shop:Shop", files | {"features.py": "x = 2\n"}))

    assert first.sha() == same.sha() != changed.sha()
    differing = {name for name in first.digests() if first.digests()[name] != changed.digests()[name]}
    assert differing == {"features.py"}


def test_the_digest_of_code_that_does_not_travel_is_that_of_its_version():
    """Another raymlops is other code."""
    assert collect(RecipeBase).digests() == {"raymlops": __version__}
    assert Code(distribution="raymlops", version="0").sha() != Code(distribution="raymlops", version="1").sha()


NAMING = RECIPE.replace("...", "package_data = ({})")


@pytest.mark.parametrize("module", ["shop.nlp.recipe", "recipe", "examples.recipe"])
def test_named_files_travel_whatever_they_are(imported, module):
    """Beside the module: a large one, one of an unknown kind, those of a folder, one that is called a secret."""
    folder = "".join(f"{part}/" for part in module.split(".")[:-1])
    beside = {
        "tokenizer.json": "x" * (MAX_DATA_BYTES + 1),
        "spm.model": "m",
        "assets/a.bin": "a",
        "assets/b.bin": "b",
        "secret_agent.json": "{}",
        "assets/secret.bin": "",
    }
    shop = imported(
        f"{module}:Shop",
        {
            **({"shop/__init__.py": "", "shop/nlp/__init__.py": ""} if folder.startswith("shop") else {}),
            f"{folder}recipe.py": NAMING.format("'tokenizer.json', '*.model', 'assets/*', 'secret_agent.json'"),
            **{f"{folder}{name}": text for name, text in beside.items()},
        },
    )
    code = collect(shop)
    assert {name.removeprefix(folder) for name in code.files if not name.endswith(".py")} == beside.keys() - {
        "assets/secret.bin"
    }
    assert code.left_out == (("shop/nlp/assets/secret.bin",) if folder.startswith("shop") else ())
    assert code.files[f"{folder}assets/a.bin"] == b"a"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("vocab.txt", r"Shop\.package_data: 'vocab\.txt' names no file below"),
        ("../vocab.txt", r"'\.\./vocab\.txt' is outside of"),
        ("", "'' is not a pattern"),
        ("large.bin", r"the named files are larger than 128 MiB, at .*large\.bin"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(imported, tmp_path, pattern, message):
    """Before the training, and not in a replica."""
    shop = imported("shop:Shop", {"shop.py": NAMING.format(f"{pattern!r},")})
    with (tmp_path / "source0" / "large.bin").open("wb") as file:
        file.truncate(MAX_NAMED_BYTES + 1)
    with pytest.raises(RecipeError, match=message):
        collect(shop)


def test_a_base_class_names_the_files_beside_itself(imported):
    """A recipe inherits what its base reads."""
    shop = imported(
        "shop:Shop",
        {
            "shop.py": "from nlp.base import Base\nclass Shop(Base): ...\n",
            "nlp/__init__.py": "",
            "nlp/base.py": NAMING.format("'spm.model'").replace("class Shop", "class Base"),
            "nlp/spm.model": "m",
        },
    )
    assert "nlp/spm.model" in collect(shop).files


def test_what_cannot_be_read_and_does_not_travel_is_left_alone(imported, tmp_path):
    """A link that leads nowhere, to data on another machine."""
    shop = imported("shop.recipe:Shop", {"shop/__init__.py": "", "shop/recipe.py": RECIPE})
    (tmp_path / "source0" / "shop" / "data.bin").symlink_to("/nowhere")
    assert collect(shop).left_out == ("shop/data.bin",)
