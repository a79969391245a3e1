"""What a run consists of while it goes on, and what drives it: made from a recipe, brought back."""
