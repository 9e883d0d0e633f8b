// How the numbers of a graph lie in memory: as f32. Every shader has this text or lib/f16 before it.

// A number that is computed with, as f32.
alias real = f32;
// A number that is only moved.
alias word = u32;

