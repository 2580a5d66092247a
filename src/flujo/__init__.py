"""Where do the guide's imports live? Here: names only, the work is done in ``flujo_core`` and the plugins."""
