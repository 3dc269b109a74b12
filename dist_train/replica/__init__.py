"""The backbone on every rank, with its optimizer."""
