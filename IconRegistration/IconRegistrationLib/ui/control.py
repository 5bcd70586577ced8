"""A control of the Review section (`Control`), and what all of them say together (`View`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ..mrml.registration import RegistrationRequest, ResultNodes


class View(SimpleNamespace):
    """Review settings of a result: the value of each control by its name.

    Amounts are in 0..1, lengths in mm, 0 for automatic.
    """

    def but(self, **changes: Any) -> View:
        """Return this view with other values.

        Raises
        ------
        TypeError
            If no control has one of the names.
        """
        unknown = changes.keys() - vars(self).keys()
        if unknown:
            raise TypeError(f"No control of the Review section is called {', '.join(sorted(unknown))}")
        return View(**{**vars(self), **changes})


def _always(*_: Any) -> bool:
    return True


def _unchanged(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Control:
    """Everything about one control of the Review section.

    Attributes
    ----------
    name : str
        The name of its value in a `View`.
    parameter : str
        The parameter that remembers it, in the module's parameter node and in saved scenes.
    kind : type
        Type of the parameter, as Slicer's parameterNodeWrapper takes it; `Annotated` with a range for a number.
    default
        The parameter's default.
    widget : str or callable
        The name of the widget in the .ui file, or a function that makes one of the types that parameterNodeWrapper
        binds; a made one is shown in a row of its own.
    title : Sentence or str
        The text before a made widget; docs/panel.md describes it.
    value : callable
        The parameter's value -> the view's value.
    possible : callable
        (view, request, nodes) -> the value that goes together with the other controls and the data. Values of controls
        that come earlier in the table are possible ones already. None: any value is.
    enabled : callable
        (view, request, nodes) -> whether the control does something now. Not called without a result.
    visible : callable
        (view that is asked for) -> whether the control is seen. None: it always is.
    label : str
        The name of the label in the .ui file that is seen with the control.
    show : callable
        (review: ui.reviewing.Review) -> None; changes the scene when the value or one of `follows` has changed. Every
        change through `review.restore_point` is undone by itself.
    follows : tuple of str
        Names of other controls after whose change `show` is called too.
    end : callable
        (review) -> None; called before the scene is restored.
    """

    name: str
    parameter: str
    kind: Any
    default: Any
    widget: str | Callable[[], Any]
    title: str = ""
    value: Callable[[Any], Any] = _unchanged
    possible: Callable[[View, RegistrationRequest, ResultNodes], Any] | None = None
    enabled: Callable[[View, RegistrationRequest, ResultNodes], bool] = _always
    visible: Callable[[View], bool] | None = None
    label: str = ""
    show: Callable[[Any], None] | None = None
    follows: tuple[str, ...] = ()
    end: Callable[[Any], None] | None = None

    @property
    def widget_name(self) -> str:
        """The attribute of the page's widgets that holds the control's own."""
        return self.widget if isinstance(self.widget, str) else self.name
