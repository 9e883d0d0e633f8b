use langevin::cpu::gemm::*;
fn cpu() -> f64 { std::fs::read_to_string("/proc/thread-self/schedstat").unwrap().split(' ').next().unwrap().parse::<f64>().unwrap() * 1e-9 }
fn time(flops: f64, mut f: impl FnMut()) -> f64 { f(); let t = cpu(); let mut n = 0; while cpu() - t < 0.4 { f(); n += 1; } flops * n as f64 / (cpu() - t) / 1e9 }
fn main() {
    let conv = |b: usize, s: usize, c: usize, n: usize| {
        let w = Window { height: s, width: s, channels: c, out_height: s, out_width: s, kernel: 3, stride: 1, pad_top: 1, pad_left: 1, dilation: 1 };
        let x = vec![0.5f32; b * s * s * c];
        let k = 9 * c;
        let wt = vec![0.25f32; k * n.next_multiple_of(16)];
        let m = b * s * s;
        let mut y = vec![0f32; m * n];
        let f = 2.0 * (m * n * k) as f64;
        let g = time(f, || gemm(&Im2col { data: &x, window: w }, &wt, [m, n, k], &Epilogue::default(), &mut y));
        let mut dw = vec![0f32; k * n.next_multiple_of(16)];
        let wg = time(f, || weight_grad(&Im2col { data: &x, window: w }, &y, [m, n, 9, c], &mut dw));
        let a = vec![0.5f32; 96 * 272];
        let tiles = time(2.0 * 96.0 * n as f64 * k as f64, || { for k0 in (0..k).step_by(256) { let d = 256.min(k - k0); let t = Tiles { a: a.as_ptr(), a_row: 272, a_col: 1, b: wt[k0 * 16..].as_ptr(), b_panel: k * 16, c: y.as_mut_ptr(), c_row: n, c_panel: 16 }; unsafe { t.run([96.min(m), n, d], k0 > 0) } } }) * (96.min(m) as f64 / 96.0);
        let l1 = time(2.0 * 96.0 * 16.0 * 256.0, || { let t = Tiles { a: a.as_ptr(), a_row: 272, a_col: 1, b: wt.as_ptr(), b_panel: k * 16, c: y.as_mut_ptr(), c_row: n, c_panel: 16 }; unsafe { t.run([96.min(m), 16, 256], true) } });
        println!("conv b{b} {s}x{s} {c}->{n}: gemm {g:.1} wgrad {wg:.1} tiles {tiles:.1} one panel {l1:.1} GF/s");
    };
    conv(1, 32, 128, 128); conv(1, 16, 256, 256); conv(8, 16, 512, 256); conv(1, 64, 320, 320); conv(1, 8, 1280, 1280);
    let lin = |m: usize, k: usize, n: usize| {
        let x = vec![0.5f32; m * k]; let wt = vec![0.25f32; k * n.next_multiple_of(16)]; let mut y = vec![0f32; m * n];
        let g = time(2.0 * (m * n * k) as f64, || gemm(&Matrix { data: &x, stride: k }, &wt, [m, n, k], &Epilogue::default(), &mut y));
        println!("lin {m}x{k}x{n}: {g:.1} GF/s");
    };
    lin(256, 384, 1536); lin(2048, 384, 1536); lin(2048,2048,2048); lin(64,1280,1280);lin(4096,320,2560);
}
