"""What a run over many GPUs sends, holds and writes: formulas of this code's steps, and what ranks really send."""
