"""PySide6 made to behave as PythonQt, Slicer's Qt binding, does: as far as module code can tell.

- A Qt property is an attribute and hides the getter of its name (`label.text`, `combo.count`); an assigned value is
  converted as PythonQt does it (bool by truth value, str by str(), int by floor) or refused.
- C++ objects take no new attributes; their methods and signals cannot be overwritten.
- `object.connect("signal(args)", callable)`, `object.connect("signal(args)", receiver, "slot(args)")` and
  `object.signal.connect(callable)`. What a signal carries beyond the arguments of a plain function or method is
  dropped; a function with a default (`lambda x=x: ...`) has room for it, and gets it.
- An exception in a slot is printed, and the program goes on. Here it is also kept in `errors`, where a test sees it.
- Static dialogs return the bare value; here they, and everything modal, raise: a test must replace them.

Stricter than PythonQt on purpose: connecting to a signal that does not exist raises instead of printing.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import traceback
import types

from PySide6 import QtCore, QtGui, QtNetwork, QtSvg, QtUiTools, QtWidgets

from . import errors

MODULES = (QtCore, QtGui, QtWidgets, QtNetwork, QtSvg, QtUiTools)
QObject = QtCore.QObject

#: Virtual getters that are properties too; PythonQt leaves these callable.
_STAY_METHODS = {"sizeHint", "minimumSizeHint"}


def report(error: BaseException) -> None:
    """What PythonQt does with an exception in a slot."""
    errors.append(error)
    traceback.print_exception(error)


# ------------------------------------------------------------------------------------------------ signals and slots


def accepted(function, arguments: tuple) -> tuple:
    """The arguments that PythonQt passes on: cut for functions and methods without *args, else all of them."""
    bound, plain = isinstance(function, types.MethodType), getattr(function, "__func__", function)
    takes_any_number = 0x04
    if isinstance(plain, types.FunctionType) and not plain.__code__.co_flags & takes_any_number:
        return arguments[: plain.__code__.co_argcount - bound]
    return arguments


def guarded(function, limit: int | None = None):
    """`function` as a slot that gets at most `limit` arguments and never raises."""

    def slot(*arguments):
        try:
            function(*accepted(function, arguments[:limit]))
        except Exception as error:
            report(error)

    return slot


def normalized(signature: str) -> str:
    return QtCore.QMetaObject.normalizedSignature(signature).data().decode()


def argument_count(signature: str) -> int:
    inside = signature[signature.index("(") + 1 : signature.rindex(")")].strip()
    return len(inside.split(",")) if inside else 0


class Signal:
    """A signal that carries what PySide's cannot (vtkMRMLNode*), under its C++ signatures; for class bodies."""

    def __init__(self, *signatures: str):
        self.signatures = [normalized(signature) for signature in signatures]
        self.name = self.signatures[0].split("(")[0]

    def __get__(self, owner, _kind=None):
        return self if owner is None else BoundSignal(self, owner)


class BoundSignal:
    def __init__(self, signal: Signal, owner):
        self._signal, self._owner = signal, owner

    def _slots(self) -> list:
        return self._owner.__dict__.setdefault("_h_slots", {}).setdefault(self._signal.name, [])

    def connect(self, function, signature: str | None = None) -> bool:
        self._slots().append((signature or self._signal.signatures[0], function))
        return True

    def disconnect(self, function=None, signature: str | None = None) -> bool:
        slots = self._slots()
        before = len(slots)
        slots[:] = [slot for slot in slots if function not in (None, slot[1]) or signature not in (None, slot[0])]
        return len(slots) < before

    def emit(self, *arguments) -> None:
        if self._owner.signalsBlocked():
            return
        for signature, function in list(self._slots()):
            # the overload f(bool) beside f(node) carries whether there is a node
            values = tuple(map(bool, arguments)) if signature.endswith("(bool)") else arguments
            guarded(function, argument_count(signature))(*values)

    __call__ = emit


def connect(sender, signal, *target) -> bool:
    """object.connect(signature, callable) and object.connect(signature, receiver, slot signature)."""
    if isinstance(
        signal, QObject
    ):  # qt.QObject.connect(sender, signature, ...), and PySide's own code: "2" + signature
        return connect(signal, target[0].lstrip("2"), *target[1:])
    function = target[0] if len(target) == 1 else _slot(*target)
    signature, own = _resolve(sender, signal)
    if own:
        return own.connect(function, signature)
    wrapper = guarded(function)
    _plain_connect(sender, "2" + signature, wrapper)
    sender.__dict__.setdefault("_h_connections", []).append((signature, function, wrapper))
    return True


def disconnect(sender, signal=None, function=None, *_slot_name) -> bool:
    if signal is None:
        return _plain_disconnect(sender)
    signature, own = _resolve(sender, signal)
    if own:
        return own.disconnect(function, signature)
    connections = sender.__dict__.get("_h_connections", [])
    for connection in list(connections):
        if connection[0] == signature and function in (None, connection[1]):
            _plain_disconnect(sender, "2" + signature, connection[2])
            connections.remove(connection)
            return True
    return False


def _slot(receiver, name: str):
    """receiver, "setEnabled(bool)" -> a callable that takes at most the slot's own number of arguments."""
    function = getattr(receiver, name.split("(")[0], None)
    if isinstance(function, QtCore.SignalInstance):
        function = function.emit
    if not callable(function):
        raise ValueError(f"{type(receiver).__name__} has no slot {name}")
    count = argument_count(normalized(name))
    return lambda *arguments: function(*arguments[:count])


def _resolve(sender, signal: str):
    signature = normalized(signal)
    own = getattr(type(sender), signature.split("(")[0], None)
    if isinstance(own, Signal):
        if signature in own.signatures:
            return signature, own.__get__(sender)
    elif sender.metaObject().indexOfSignal(signature) >= 0:
        return signature, None
    raise ValueError(f"signal {signal} does not exist on {type(sender).__name__}")


_plain_connect, _plain_disconnect = QObject.connect, QObject.disconnect
_plain_signal_connect, _plain_signal_disconnect = QtCore.SignalInstance.connect, QtCore.SignalInstance.disconnect
_signal_connections: list = []  # (signal instance, callable, wrapper)


def _signal_name(signal) -> str:
    """Of a signal instance: owner and name, without the arguments."""
    return repr(signal).split(" at ")[0].split("(")[0] + repr(signal).split(" at ")[-1]


def _signal_connect(signal, function, *arguments):
    if isinstance(function, QtCore.SignalInstance) or arguments:
        return _plain_signal_connect(signal, function, *arguments)
    if repr(signal).split(" at ")[0].endswith("()"):  # PySide prefers clicked(); PythonQt the first, clicked(bool)
        with contextlib.suppress(IndexError, TypeError, KeyError):
            signal = signal[bool]
    wrapper = guarded(function)
    _plain_signal_connect(signal, wrapper)
    _signal_connections.append((signal, function, wrapper))
    return True


def _signal_disconnect(signal, function=None):
    if function is None:
        return _plain_signal_disconnect(signal)
    for connection in list(_signal_connections):
        made, connected, wrapper = connection
        if connected == function and _signal_name(made).split("(")[0] == _signal_name(signal).split("(")[0]:
            with contextlib.suppress(RuntimeError, TypeError):  # of another object of the same class
                if _plain_signal_disconnect(made, wrapper):
                    _signal_connections.remove(connection)
                    return True
    return False


# ------------------------------------------------------------------------------------------------ properties

_CONVERSIONS = {
    "bool": bool,
    "QString": str,
    "double": float,
    "float": float,
    "int": lambda value: math.floor(value) if isinstance(value, (int, float)) else int(value),
}


def _property(cls, meta) -> property:
    """A Qt property as a Python attribute."""
    name, kind = meta.name(), meta.typeName()
    getter = getattr(cls, name, None)
    if not callable(getter) or isinstance(getter, type):
        getter = meta.read
    setter = getattr(cls, "set" + name[0].upper() + name[1:], None)
    writable, convert = meta.isWritable(), _CONVERSIONS.get(kind, lambda value: value)

    def write(self, value):
        if not writable:
            raise AttributeError(f"Property '{name}' of {type(self).__name__} object is not writable")
        try:
            value = convert(value)
            setter(self, value) if setter else meta.write(self, value)
        except (TypeError, ValueError) as error:
            raise AttributeError(f"Property '{name}' of type '{kind}' does not accept {value!r}") from error

    return property(lambda self: getter(self), write)


class StaticOrProperty(property):
    """QTimer.singleShot: a static function of the class, a property of an instance."""

    def __init__(self, static, instance: property):
        super().__init__(instance.fget, instance.fset)
        self.static = static

    def __get__(self, owner, kind=None):
        return self.static if owner is None else super().__get__(owner, kind)


_plain_setattr = QObject.__mro__[1].__setattr__  # Shiboken.Object's: the classes below it are patched


def _setattr(self, name, value):
    here = inspect.getattr_static(type(self), name, None)
    if isinstance(here, QtCore.Property):
        if here.fset is None:
            raise AttributeError(f"Property '{name}' of {type(self).__name__} object is not writable")
        return here.fset(self, value)
    of_pyside = isinstance(value, QtCore.SignalInstance) or (isinstance(value, QObject) and value.objectName == name)
    if name.startswith("_h_") or hasattr(here, "__set__") or not is_cpp(type(self)) or of_pyside:
        return _plain_setattr(self, name, value)
    if here is not None:
        raise AttributeError(f"'{name}' can not be overwritten on {type(self).__name__} object")
    if QObject.property(self, name) is not None:
        return self.setProperty(name, value)
    raise AttributeError(
        f"'{name}' does not exist on {type(self).__name__} and creating new attributes on C++ objects is not allowed"
    )


def is_cpp(cls) -> bool:
    """Whether instances stand for C++ objects: Qt's own, and our stand-ins of CTK's and Slicer's."""
    return cls.__module__.startswith(("PySide6", __package__ + "."))


def _getattribute(original):
    """PySide finds connect and disconnect in C, past the class: step around it."""
    own = {"connect": connect, "disconnect": disconnect}

    def get(self, name):
        return types.MethodType(own[name], self) if name in own else original(self, name)

    return get


def _getattr(self, name):
    """Dynamic properties and named children are attributes."""
    if not name.startswith("_"):
        value = self.property(name)
        if value is not None:
            return value
        for child in self.children():
            if child.objectName == name:
                return child
    raise AttributeError(f"{type(self).__name__} has no attribute named '{name}'")


# ------------------------------------------------------------------------------------------------ the patch


def patch() -> None:
    """Give PySide6's classes PythonQt's manners, for the rest of this process."""
    names = [(module, name) for module in MODULES for name in dir(module)]  # PySide makes a class when it is asked for
    found = {kind for module, name in names if isinstance(kind := getattr(module, name), type)}
    classes = sorted((kind for kind in found if issubclass(kind, QObject)), key=lambda kind: len(kind.__mro__))
    properties = []  # all are read before any is set: a patched base would hide the getters of its subclasses
    for cls in classes:
        meta = cls.staticMetaObject
        own = (meta.property(i) for i in range(meta.propertyOffset(), meta.propertyCount()))
        properties += [(cls, prop.name(), _property(cls, prop)) for prop in own if prop.name() not in _STAY_METHODS]
    single_shot = QtCore.QTimer.singleShot
    for cls, name, attribute in properties:
        setattr(cls, name, attribute)
    QtCore.QTimer.singleShot = StaticOrProperty(single_shot, QtCore.QTimer.singleShot)
    for cls in classes:
        cls.__setattr__ = _setattr
        if "__getattribute__" in cls.__dict__:
            cls.__getattribute__ = _getattribute(cls.__getattribute__)
    QObject.__getattr__ = _getattr
    QObject.name = QObject.__dict__["objectName"]
    QObject.className = lambda self: self.metaObject().className()
    QObject.connect, QObject.disconnect = connect, disconnect
    QtCore.SignalInstance.connect, QtCore.SignalInstance.disconnect = _signal_connect, _signal_disconnect
    _forbid_dialogs()


def _forbid_dialogs() -> None:
    def refusal(name):
        def refuse(*_arguments, **_options):
            raise AssertionError(f"{name} would block: replace it in the test")

        return refuse

    static = {
        QtWidgets.QFileDialog: ("getOpenFileName", "getOpenFileNames", "getSaveFileName", "getExistingDirectory"),
        QtWidgets.QInputDialog: ("getText", "getInt", "getDouble", "getItem"),
        QtWidgets.QMessageBox: ("information", "question", "warning", "critical", "about"),
    }
    for cls, names in static.items():
        for name in names:
            setattr(cls, name, staticmethod(refusal(f"{cls.__name__}.{name}")))
    for cls in (QtWidgets.QDialog, QtWidgets.QMessageBox, QtWidgets.QMenu, QtWidgets.QFileDialog):
        cls.exec = cls.exec_ = refusal(f"{cls.__name__}.exec")


def make_module() -> types.ModuleType:
    """Slicer's `qt`: all of Qt's modules as one."""
    qt = types.ModuleType("qt")
    for module in MODULES:
        qt.__dict__.update({name: getattr(module, name) for name in dir(module) if not name.startswith("__")})
    return qt
