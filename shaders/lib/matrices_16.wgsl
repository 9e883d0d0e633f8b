// Matrices that a subgroup multiplies together, 16 by 16, and their sums in f32.

const EDGE: u32 = 16u;
alias LeftMatrix = coop_mat16x16<real, A>;
alias RightMatrix = coop_mat16x16<real, B>;
alias SumMatrix = coop_mat16x16<f32, C>;

