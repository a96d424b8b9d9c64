"""What is wrong with a corpus: rules, what is normal for it, the report, and the cleaning that the recipe asks for."""
