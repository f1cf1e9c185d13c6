"""Training of the RetinaNet by the bundle's recipe: crops, matching, loss, and its evaluation by boxes."""
