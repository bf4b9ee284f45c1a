"""Renderers: they return a renderable or a str; the command line prints it."""
