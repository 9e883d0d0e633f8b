// How the numbers of a graph lie in memory: as f16. Arithmetic and sums are f32 all the same.
enable f16;

alias real = f16;
alias word = f16;

