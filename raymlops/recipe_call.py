"""Call a recipe's code, so that what it raises names the method and the recipe's own line.

Knows nothing of what is called.
"""

from __future__ import annotations

import inspect
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymlops.errors import RaymlopsError, RecipeError
from raymlops.signals import from_handler

if TYPE_CHECKING:
    from collections.abc import Callable

_OURS = str(Path(__file__).parent / "_")[:-1]
_SHIPPED = str(Path(__file__).parent / "recipes" / "_")[:-1]
_LIBRARIES = tuple(sorted({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}))
_INSTALLED, _TORCH = "-packages/", "-packages/torch/"  # site-packages, and dist-packages of a system's Python


def call_recipe(where: str, function: Callable[[], Any], *, place: Callable[[], str] | None = None) -> Any:
    """Call a recipe's code and convert an exception into a ``RecipeError`` that names the method and the line.

    Also ``sys.exit``, which would end the process as if it had succeeded; a signal handler's passes through. ``place``
    says where it was if no line of the recipe was running.
    """
    try:
        return function()
    except RaymlopsError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and from_handler(error):
            raise
        raise RecipeError(f"{where} {done(error)} {_place_of(error, place)}", hint=_hint(where, error)) from error


def described(value: Any) -> str:
    """Describe a value for an error message."""
    if value is None:
        return "None"
    return f"the class {value.__qualname__}" if inspect.isclass(value) else f"a {type(value).__name__}"


def _hint(where: str, error: BaseException) -> str | None:
    """Return what is often meant."""
    recipe, _, method = where.partition(".")
    if isinstance(error, AttributeError) and type(error.obj).__name__ == recipe:
        return "What datasets() finds out for other methods is what fit() returns: self.state, which replicas have too."
    if isinstance(error, KeyError) and method == "encode()":
        return "Its columns are the inputs of a request, without the label; what fit() returned is in self.state."
    if isinstance(error, TypeError) and method == "predict()":
        return "By default the model gets the whole batch: define predict(model, batch) where it takes a part of that."
    return None


def _place_of(error: BaseException, place: Callable[[], str] | None) -> str:
    """Return where the recipe raised: its own innermost line, not one of torch or numpy.

    Of a recipe that is installed as a library, its outermost line; torch may call it.
    """
    frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    places = [(frame.filename, frame.lineno) for frame in frames]
    called = [found for found in places if not found[0].startswith(_OURS) or found[0].startswith(_SHIPPED)]
    called = [found for found in called if _TORCH not in found[0]]
    own = [found for found in called if not found[0].startswith(("<", *_LIBRARIES)) and _INSTALLED not in found[0]]
    chosen = own[-1:] or called[:1]
    if not chosen and place is not None:
        return place()
    return "".join(f"at {name}:{line}" for name, line in chosen or places[-1:])


def done(error: BaseException) -> str:
    """Describe for an error message what a recipe's code did instead of returning."""
    if isinstance(error, SystemExit):
        return f"called sys.exit({'' if error.code is None else repr(error.code)})"
    return f"raised {type(error).__name__}: {error}"
