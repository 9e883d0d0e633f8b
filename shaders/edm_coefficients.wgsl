// sigma [n] -> data^2 / v, sigma * data / sqrt(v), 1 / sqrt(v), ln(sigma) / 4, where v = sigma^2 + data^2.

struct Scalars {
    n: u32,
    // Standard deviation of the data.
    data: f32,
    sigma_at: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> sigma: array<f32>;
@group(0) @binding(2) var<storage, read_write> skip: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@group(0) @binding(4) var<storage, read_write> input: array<f32>;
@group(0) @binding(5) var<storage, read_write> noise: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (wg.x + wg.y * wgs.x) * 64u + lane;
    if i < s.n {
        let level = sigma[s.sigma_at + i];
        let root = sqrt(level * level + s.data * s.data);
        let share = s.data / root;
        skip[i] = share * share;
        out[i] = level * share;
        input[i] = 1.0 / root;
        noise[i] = log(level) / 4.0;
    }
}
