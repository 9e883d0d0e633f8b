// Matrices that a subgroup multiplies together, 8 by 8, and their sums in f32.

const EDGE: u32 = 8u;
alias LeftMatrix = coop_mat8x8<real, A>;
alias RightMatrix = coop_mat8x8<real, B>;
alias SumMatrix = coop_mat8x8<f32, C>;

