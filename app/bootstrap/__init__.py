"""The composition root: builds everything from settings, and is the only package that knows every layer.

A module per process or task, so that a command imports what it needs. Feast takes seconds to import: what needs it imports
it where it is built.
"""
