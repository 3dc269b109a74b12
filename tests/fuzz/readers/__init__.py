"""The readers of the product, by name."""

from tests.fuzz.readers import (
    embeddings,
    evaluation,
    faces,
    lists,
    models,
    pictures,
    prep,
    recipes,
    runs,
    sets,
    weights,
)

READERS = {
    reader.name: reader
    for module in (recipes, runs, sets, prep, lists, pictures, evaluation, embeddings, models, weights, faces)
    for reader in module.READERS
}
