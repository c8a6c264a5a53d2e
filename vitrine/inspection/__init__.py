"""Looking inside a run: replay, explanations of single parameters, health, comparison."""
