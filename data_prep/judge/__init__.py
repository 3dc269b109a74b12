"""How well a detector finds faces whose places are known: matching, curves, protocols, a report."""
