// For adapters with cooperative matrices; stands before everything else.
enable wgpu_cooperative_matrix;

