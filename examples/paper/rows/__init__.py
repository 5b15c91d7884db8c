"""The paper's experiments, a room each: ``measure`` trains and measures, ``table`` shows what was measured."""
