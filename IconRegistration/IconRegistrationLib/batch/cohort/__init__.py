"""Many pairs at once: manifest, driver, workers, table and page."""
