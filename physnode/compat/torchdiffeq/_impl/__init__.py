"""Modules that other projects import although their names are private."""
