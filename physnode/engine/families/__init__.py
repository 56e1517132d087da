"""Families of methods: each owns its step and the transposed sweep of that step."""
