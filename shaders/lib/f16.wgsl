enable f16;

// How weights are stored: half the bytes, the arithmetic is f32 all the same.

alias stored = f16;
