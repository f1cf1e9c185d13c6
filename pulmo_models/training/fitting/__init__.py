"""The trainings: recipes, samples from stores, losses, Lightning."""
