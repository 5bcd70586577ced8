"""The library behind the IconRegistration module of 3D Slicer; importing it imports nothing.

Who may import whom (``Testing/headless/test_import_rules.py`` reads every import and enforces it):

- ``core``           numpy, scipy, torch, itk; never slicer, vtk or qt
- ``mrml``           core, vtk and the MRML classes of slicer; never qt, slicer.app, slicer.mrmlScene
- ``batch``, ``worker``   core and mrml
- ``ui``             qt and slicer, and everything above

torch, itk and matplotlib are imported inside the functions that need them in whatever Slicer loads at start.
"""

__version__ = "0.1.0"
