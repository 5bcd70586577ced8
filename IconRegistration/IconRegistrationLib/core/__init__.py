"""Registration on arrays: numpy, torch and itk, no scene and no window."""
