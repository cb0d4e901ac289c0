"""The paper's experiments on the embedded world: which there are, their runs, and what came of them."""
