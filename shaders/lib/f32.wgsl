// How weights are stored. First of all files: `lib/f16` enables an extension.

alias stored = f32;
