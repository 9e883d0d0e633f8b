//! Launches of a graph that begin early: when all blocks of those that they wait for have begun, instead of ended. What of them comes
//! before their `griddepcontrol.wait` then runs beside the end of those. Known to Hopper and newer GPUs, and to drivers for CUDA 12.3 and newer
//! ("programmatic dependent launch" in CUDA's programming guide).

use cudarc::driver::sys::{self, CUgraph, CUgraphNode, CUresult};

/// The oldest GPUs that know it, and the PTX that does.
const OLDEST_GPU: (u32, u32) = (9, 0);
const OLDEST_PTX: (u32, u32) = (7, 8);
const WAIT: &str = "griddepcontrol.wait";
const ENTRY: &str = ".entry";

/// `CUgraphEdgeData`: how a node waits for another.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Edge {
    from_port: u8,
    to_port: u8,
    kind: u8,
    reserved: [u8; 5],
}

impl Edge {
    /// From when all blocks of the first have begun (`CU_GRAPH_KERNEL_NODE_PORT_LAUNCH_ORDER`) to when the second asks
    /// (`CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC`).
    pub(super) const EARLY: Edge = Edge { from_port: 2, to_port: 0, kind: 1, reserved: [0; 5] };
}

/// `cuGraphAddDependencies_v2`: graph, from, to, edges, how many.
pub(super) type AddDependencies =
    unsafe extern "C" fn(CUgraph, *const CUgraphNode, *const CUgraphNode, *const Edge, usize) -> CUresult;

/// The driver's function for such edges, if it and the GPU know them.
pub(super) fn add_dependencies(compute: (u32, u32)) -> Option<AddDependencies> {
    if compute < OLDEST_GPU || std::env::var("LANGEVIN_EARLY").is_ok_and(|v| v == "0") {
        return None;
    }
    // SAFETY: the library is there, as a GPU of it is open; the function is declared as in cuda.h.
    unsafe { sys::culib().get::<AddDependencies>(b"cuGraphAddDependencies_v2\0").ok().map(|function| *function) }
}

/// PTX whose entries wait first thing, unless they have a place for it themselves; `None` if its version does not know how.
pub(super) fn with_waits(ptx: &str) -> Option<String> {
    let number = |text: &str| text.parse::<u32>().ok();
    let (major, minor) = directive(ptx, ".version")?.split_once('.')?;
    let target = directive(ptx, ".target")?;
    let generation = target.strip_prefix("sm_")?.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let (known, old) = ((number(major)?, number(minor)?) >= OLDEST_PTX, number(generation)? < 10 * OLDEST_GPU.0);
    let mut entries = ptx.split(ENTRY);
    let mut text = entries.next()?.to_string();
    if old {
        text = text.replacen(target, "sm_90", 1);
    }
    for entry in entries {
        let (declaration, body) = entry.split_once('{')?;
        // On the line of the brace: the driver's messages name lines.
        let wait = if body.contains(WAIT) { "" } else { "griddepcontrol.wait;" };
        text.extend([ENTRY, declaration, "{", wait, body]);
    }
    known.then_some(text)
}

/// True if an entry of PTX waits for the launches before it.
pub(super) fn waits(ptx: &str, entry: &str) -> bool {
    let is_it = |text: &&str| {
        let rest = text.trim_start().strip_prefix(entry).map(str::trim_start);
        rest.is_some_and(|rest| rest.starts_with('('))
    };
    ptx.split(ENTRY).skip(1).find(is_it).is_some_and(|text| text.contains(WAIT))
}

/// What stands behind a directive of a module.
fn directive<'a>(ptx: &'a str, name: &str) -> Option<&'a str> {
    ptx.lines()
        .find_map(|line| line.trim_start().strip_prefix(name))?
        .split([' ', '\t', ','])
        .find(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_wait_before_anything_else_and_once() {
        let ptx = ".version 8.0\n.target sm_80\n.visible .entry a(\n.param .u64 p\n)\n.maxntid 32, 1, 1\n{\n\tret;\n}\n\
                   .visible .entry b()\n{\n\tgriddepcontrol.wait;\n\tret;\n}\n";
        let made = with_waits(ptx).unwrap();
        let expected = ptx.replace("sm_80", "sm_90").replacen("{\n\tret", "{griddepcontrol.wait;\n\tret", 1);
        assert_eq!(made, expected);
        assert!(!waits(ptx, "a") && waits(ptx, "b") && waits(&made, "a") && !waits(&made, "c"));
        let hopper = ptx.replace("sm_80", "sm_90a");
        assert!(with_waits(&hopper).unwrap().contains(".target sm_90a\n"));
        for old in [ptx.replace("8.0", "7.7"), ptx.replace(".target", ".aim"), ".version 8.0\n.entry".into()] {
            assert_eq!(with_waits(&old), None);
        }
    }
}
