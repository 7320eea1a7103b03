"""Whether a recipe can be searched: read before ranks join and before a job is submitted, so no engine is imported."""

from dsmemvp.config.recipe import Recipe
from dsmemvp.errors import UserError
from dsmemvp.prompts import method_class


def check_search(recipe: Recipe) -> None:
    """Raises UserError for a method without a setting to search for, or no data to score on."""
    if not method_class(recipe.method.name).searched:
        raise UserError(f"method.name: {recipe.method.name} has no setting to search for")
    if recipe.vision.cache_features:
        raise UserError("vision.cache_features: a search looks at pictures, not at features; leave it out")
    if not recipe.data.search:
        raise UserError("data.search: give the folder of shards to score on, which no training and no evaluation sees")
