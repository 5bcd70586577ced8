"""What runs in Slicer's window beside the module file: the worker's process, the installer, presets, samples."""
