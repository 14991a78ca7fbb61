"""From a frame to a score: model packages, preprocessing, engines, and what their outputs mean."""
