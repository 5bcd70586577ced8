"""MRML nodes to and from core types; the scene is always passed in."""
