"""The library behind the IconRegistration module of 3D Slicer; importing it imports nothing.

Its rooms, from the ground up. A room imports only the rooms above it in this list
(``Testing/headless/test_import_rules.py`` reads every import, also under TYPE_CHECKING, and enforces it):

- ``text``, ``errors``, ``plain``, ``machine``   what everybody may use
- ``spatial``        geometry, displacement fields, sampling, lattices: values and arithmetic in mm
- ``io``             files to values and back
- ``networks``       ICON-family networks: architecture, inference, model cards, weights, devices
- ``registration``   two images, settings and constraints to two displacement fields
- ``quality``        measures and judges displacement fields
- ``workflow``       one whole job: inputs, checks, preflight, pipeline, results
- ``demo``           the generated phantom and plots
- ``worker``         the child process and the exchange of values with it
- ``mrml``           nodes to values and back: vtk and MRML classes; never qt, slicer.app or slicer.mrmlScene
- ``batch``          the command, cohorts
- ``ui``             qt and slicer, and everything above

Up to ``worker`` nothing imports slicer, vtk or qt. torch, itk and matplotlib are imported inside the functions that
need them in whatever Slicer loads at start.
"""

__version__ = "0.1.0"
