"""slicer.parameterNodeWrapper for the types that our modules use: bool, int, float, str, enumerations and nodes.

The values stand in the node as Slicer's wrapper writes them. A type, or a pair of parameter and widget, that Slicer
can bind and this page cannot raises.
"""

from __future__ import annotations

import enum
import functools
import math
import types
import typing
from dataclasses import dataclass

import slicer
import vtk
from PySide6 import QtWidgets

from .pythonqt import report
from .widgets import ctkSliderWidget, qMRMLNodeComboBox


class Default:
    def __init__(self, value=None, *, generator=None):
        self.make = generator or (lambda: value)


@dataclass
class WithinRange:
    minimum: float
    maximum: float


@dataclass
class Minimum:
    minimum: float


@dataclass
class Maximum:
    maximum: float


@dataclass
class Decimals:
    value: int


@dataclass
class SingleStep:
    value: float


class Choice:
    def __init__(self, choices):
        self.choices = list(choices)


class Parameter:
    """One parameter: its type, its place in the node, its default."""

    def __init__(self, name, annotation, assigned):
        self.name, self.kind, self.notes = name, annotation, ()
        if typing.get_origin(annotation) is typing.Annotated:
            self.kind, *self.notes = typing.get_args(annotation)
        union = typing.get_origin(self.kind) in (typing.Union, types.UnionType)
        self.kinds = [kind for kind in typing.get_args(self.kind) if kind is not type(None)] if union else [self.kind]
        self.is_node = all(isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode) for kind in self.kinds)
        self.is_enum = isinstance(self.kind, type) and issubclass(self.kind, enum.Enum)
        if not (self.is_node or self.is_enum or self.kind in (int, float, bool, str)):
            raise TypeError(f"the harness's parameterNodeWrapper has no type {self.kind} ({name})")
        default = self.note(Default)
        self.default = self.first() if assigned is None and default is None else assigned
        if default is not None:
            self.default = default.make()

    def note(self, cls):
        return next((note for note in self.notes if isinstance(note, cls)), None)

    def limit(self, side):
        return next((getattr(note, side) for note in self.notes if hasattr(note, side)), None)

    def first(self):
        """The value of a parameter without a default."""
        if self.is_node:
            return None
        if choice := self.note(Choice):
            return choice.choices[0]
        if self.is_enum:
            return next(iter(self.kind))
        bounds = self.note(WithinRange)
        return self.kind(bounds.minimum) if bounds and not bounds.minimum <= 0 <= bounds.maximum else self.kind()

    def checked(self, value):
        if self.is_node:
            if value is not None and not isinstance(value, tuple(self.kinds)):
                raise TypeError(f"{self.name}: {value!r} is not a {self.kind}")
            return value
        value = float(value) if self.kind is float and type(value) is int else value
        if not isinstance(value, self.kind) or (self.kind is int and isinstance(value, bool)):
            raise TypeError(f"{self.name}: {value!r} is not a {self.kind.__name__}")
        low, high, choice = self.limit("minimum"), self.limit("maximum"), self.note(Choice)
        if (low is not None and value < low) or (high is not None and value > high):
            raise ValueError(f"{self.name}: {value!r} is not within {low} and {high}")
        if choice and value not in choice.choices:
            raise ValueError(f"{self.name}: {value!r} is none of {choice.choices}")
        return value

    def write(self, node, value):
        value = self.checked(value)
        if self.is_node:
            node.SetNodeReferenceID(self.name, None if value is None else value.GetID())
        else:
            node.SetParameter(self.name, value.name if self.is_enum else str(value))

    def read(self, node):
        if self.is_node:
            return node.GetNodeReference(self.name)
        text = node.GetParameter(self.name)
        if self.kind is bool:
            return text == "True"
        return self.kind[text] if self.is_enum else self.kind(text)

    def write_default(self, node):
        present = self.is_node or self.name in (node.GetParameterNames() or ())
        if not present and self.default is not None:
            self.write(node, self.default)


class Binding:
    """A widget as the holder of one parameter's value: `read`, `write` and the signal that it changed."""

    def __init__(self, widget, parameter):
        self.widget = widget
        kind, cls = parameter.kind, type(widget)
        if parameter.is_node and cls is qMRMLNodeComboBox:
            widget.nodeTypes = [kind.__name__ for kind in parameter.kinds]
            self.signal, self.read, self.write = widget.currentNodeChanged, widget.currentNode, widget.setCurrentNode
        elif kind is bool and cls in (QtWidgets.QCheckBox, QtWidgets.QPushButton):
            widget.checkable = True
            self._hold("checked", widget.toggled)
        elif kind is str and cls is QtWidgets.QLineEdit:
            self._hold("text", widget.textChanged)
        elif cls is QtWidgets.QComboBox and (parameter.is_enum or parameter.note(Choice)):
            self._choose(parameter)
        elif (kind is int and cls in (QtWidgets.QSpinBox, QtWidgets.QSlider)) or (
            kind is float and cls in (QtWidgets.QDoubleSpinBox, ctkSliderWidget)
        ):
            self._limit(parameter)
            self._hold("value", widget.valueChanged)
        else:
            raise RuntimeError(f"Unable to create GUI connector from datatype '{kind}' to widget type '{cls}'")

    def _hold(self, name, signal):
        self.signal = signal
        self.read = lambda: getattr(self.widget, name)
        self.write = lambda value: setattr(self.widget, name, value) if self.read() != value else None

    def _choose(self, parameter):
        choices = list(parameter.kind) if parameter.is_enum else parameter.note(Choice).choices
        label = getattr(parameter.kind, "label", lambda choice: choice.name) if parameter.is_enum else str
        self.widget.clear()
        self.widget.addItems([label(choice) for choice in choices])
        self.signal = self.widget.currentIndexChanged
        self.read = lambda: choices[self.widget.currentIndex]
        self.write = lambda value: self.widget.setCurrentIndex(choices.index(value))

    def _limit(self, parameter):
        low, high = parameter.limit("minimum"), parameter.limit("maximum")
        if None in (low, high) and isinstance(self.widget, (QtWidgets.QSlider, ctkSliderWidget)):
            raise RuntimeError(f"Cannot connect the unbounded {parameter.name} to a slider")
        far = 2**31 - 1 if parameter.kind is int else math.inf
        for note, attribute in ((Decimals, "decimals"), (SingleStep, "singleStep")):
            if parameter.note(note):
                setattr(self.widget, attribute, parameter.note(note).value)
        self.widget.minimum = -far if low is None else low
        self.widget.maximum = far if high is None else high


class ParameterNode:
    """What the decorator adds to a class of annotated parameters."""

    _parameters: typing.ClassVar[dict[str, Parameter]]

    def __init__(self, parameterNode):
        self.parameterNode = parameterNode
        self._bindings, self._next, self._updating = {}, 0, False
        with slicer.util.NodeModify(parameterNode):
            for parameter in self._parameters.values():
                parameter.write_default(parameterNode)
        self._values, self._read_at = {}, None

    def connectGui(self, gui):
        """Returns nothing: Slicer's forgets the tag of `connectParametersToGui` (its issue 7547)."""
        widgets = gui.findChildren(QtWidgets.QWidget) if isinstance(gui, QtWidgets.QWidget) else vars(gui).values()
        named = {widget.property("SlicerParameterName"): widget for widget in widgets}
        self.connectParametersToGui({name: widget for name, widget in named.items() if name})

    def connectParametersToGui(self, mapping):
        if unknown := mapping.keys() - self._parameters.keys():
            raise ValueError(f"Cannot find a param with the given name: {', '.join(sorted(unknown))}")
        bound = {name: Binding(widget, self._parameters[name]) for name, widget in mapping.items()}
        for name, binding in bound.items():
            binding.write(getattr(self, name))
            binding.slot = functools.partial(self._from_gui, name, binding)
            binding.signal.connect(binding.slot)
        tag, self._next = self._next, self._next + 1
        self._bindings[tag] = bound, self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._to_gui())
        return tag

    def disconnectGui(self, tag):
        bound, observer = self._bindings.pop(tag, ({}, None))
        for binding in bound.values():
            binding.signal.disconnect(binding.slot)
        if observer is not None:
            self.RemoveObserver(observer)

    def _from_gui(self, name, binding, *_signal_arguments):
        if not self._updating:
            with slicer.util.NodeModify(self):
                setattr(self, name, binding.read())

    def _to_gui(self):
        if self._updating:
            return
        self._updating = True
        try:
            for bound, _observer in self._bindings.values():
                for name, binding in bound.items():
                    binding.write(getattr(self, name))
        except Exception as error:  # VTK prints what an observer raises and goes on
            report(error)
        finally:
            self._updating = False

    def getValue(self, name):
        """From memory, as Slicer's wrapper: what changed without the node's Modified event is not seen."""
        if self._read_at != self.parameterNode.GetMTime():
            for each, parameter in self._parameters.items():
                parameter.write_default(self.parameterNode)
                self._values[each] = parameter.read(self.parameterNode)
            self._read_at = self.parameterNode.GetMTime()
        return self._values[name]

    def setValue(self, name, value):
        with slicer.util.NodeModify(self.parameterNode):
            self._parameters[name].write(self.parameterNode, value)
            self._values[name] = self._parameters[name].read(self.parameterNode)

    def default(self, name):
        return types.SimpleNamespace(value=self._parameters[name].default)

    def StartModify(self):
        return self.parameterNode.StartModify()

    def EndModify(self, was_modifying):
        return self.parameterNode.EndModify(was_modifying)

    def AddObserver(self, event, callback):
        return self.parameterNode.AddObserver(event, callback)

    def RemoveObserver(self, tag):
        self.parameterNode.RemoveObserver(tag)

    def Modified(self):
        self.parameterNode.Modified()


def parameterNodeWrapper(cls):
    hints = typing.get_type_hints(cls, include_extras=True)
    parameters = {name: Parameter(name, hint, cls.__dict__.get(name)) for name, hint in hints.items()}
    for name, member in vars(ParameterNode).items():
        if callable(member) and (name == "__init__" or not name.startswith("__")):
            setattr(cls, name, member)
    cls._parameters = parameters
    for name in parameters:
        read, write = functools.partial(ParameterNode.getValue, name=name), ParameterNode.setValue
        setattr(cls, name, property(read, functools.partial(_set, write, name)))
    return cls


def _set(write, name, parameter_node, value):
    write(parameter_node, name, value)


def module() -> types.ModuleType:
    made = types.ModuleType("slicer.parameterNodeWrapper")
    made.parameterNodeWrapper = parameterNodeWrapper
    for public in (Choice, Decimals, Default, Maximum, Minimum, SingleStep, WithinRange):
        setattr(made, public.__name__, public)
    return made
