"""The composition root: builds everything from settings, and is the only package that knows every layer.

A module per process or task, so that a command imports what it needs. Feast and XGBoost take seconds to import: what needs
them is imported where it is built.
"""
