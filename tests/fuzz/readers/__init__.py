"""The readers of the product, by name."""

from tests.fuzz.readers import embeddings, evaluation, lists, models, pictures, prep, recipes, runs, sets

READERS = {
    reader.name: reader
    for module in (recipes, runs, sets, prep, lists, pictures, evaluation, embeddings, models)
    for reader in module.READERS
}
