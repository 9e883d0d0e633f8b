//! Shaders against naga, without an adapter: everything that lowering asks for must be valid as it asks for it.

use langevin::graph::{Kernel, Launch, Shader, WgpuTarget};
use std::collections::HashSet;
use std::sync::Mutex;
use wgpu::naga::{AddressSpace, Module, ShaderStage, TypeInner, back, front, valid};

/// Fails unless the launch's shader is valid with its constants, has the launch's arguments and scalars, and fits the target.
pub fn validate(launch: &Launch, target: &WgpuTarget) {
    static DONE: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let Kernel::Wgsl(shader) = &launch.kernel else { panic!("{:?} is no shader", launch.kernel) };
    let key = format!("{shader:?} {} {}", launch.args.len(), launch.scalars.len() + launch.anywhere.len());
    if !DONE.lock().unwrap().get_or_insert_default().insert(key) {
        return;
    }
    let name = format!("{} {}", shader.name, shader.entry);
    let module =
        front::wgsl::parse_str(shader.source).unwrap_or_else(|e| panic!("{}", e.emit_to_string(shader.source)));
    let info = validator().validate(&module).unwrap_or_else(|e| panic!("{}", e.emit_to_string(shader.source)));
    check_bindings(&name, launch, &module);
    let entry = Some((ShaderStage::Compute, shader.entry));
    let (module, _) =
        back::pipeline_constants::process_overrides(&module, &info, entry, &constants(&name, shader, &module))
            .unwrap_or_else(|e| panic!("{name}: {e}"));
    validator().validate(&module).unwrap_or_else(|e| panic!("{name}: {e:?}"));
    let entry = module.entry_points.iter().find(|e| e.name == shader.entry).expect("process_overrides found it");
    let invocations: u32 = entry.workgroup_size.iter().product();
    assert!(invocations <= target.workgroup_size, "{name}: {invocations} invocations in a workgroup");
    assert!(launch.args.len() <= target.arguments as usize, "{name}: {} arguments", launch.args.len());
    assert!(launch.grid.iter().all(|n| (1..=target.grid).contains(n)), "{name}: grid {:?}", launch.grid);
    let workgroup = module.global_variables.iter().filter(|(_, v)| v.space == AddressSpace::WorkGroup);
    let bytes: u32 = workgroup.map(|(_, v)| module.types[v.ty].inner.size(module.to_ctx())).sum();
    assert!(bytes <= target.workgroup_bytes, "{name}: {bytes} bytes of workgroup memory");
}

fn validator() -> valid::Validator {
    valid::Validator::new(valid::ValidationFlags::all(), valid::Capabilities::all())
}

/// The launch's constants; each must be one of the module's.
fn constants(name: &str, shader: &Shader, module: &Module) -> back::PipelineConstants {
    let known: HashSet<&str> = module.overrides.iter().filter_map(|(_, o)| o.name.as_deref()).collect();
    let unknown: Vec<_> = shader.constants.iter().filter(|(n, _)| !known.contains(n)).collect();
    assert!(unknown.is_empty(), "{name}: no override is called {unknown:?}");
    shader.constants.iter().map(|(n, v)| (n.to_string(), *v)).collect()
}

/// Binding 0 is a struct of as many words as the launch has scalars, the others are its arguments.
fn check_bindings(name: &str, launch: &Launch, module: &Module) {
    let scalars = launch.scalars.len() + launch.anywhere.len();
    for (_, variable) in module.global_variables.iter() {
        let Some(binding) = &variable.binding else { continue };
        let what = variable.name.as_deref().unwrap_or("?");
        assert_eq!(binding.group, 0, "{name}: `{what}` is in another group than 0");
        if binding.binding == 0 {
            assert_eq!(variable.space, AddressSpace::Uniform, "{name}: the scalars must be uniform");
            let TypeInner::Struct { members, .. } = &module.types[variable.ty].inner else {
                panic!("{name}: the scalars are no struct")
            };
            assert_eq!(members.len(), scalars, "{name}: `{what}` has other scalars than the launch");
        } else {
            assert!(matches!(variable.space, AddressSpace::Storage { .. }), "{name}: `{what}` must be storage");
            assert!(binding.binding as usize <= launch.args.len(), "{name}: there is no argument for `{what}`");
        }
    }
}
