//! Facts that two crates state because neither may depend on the other.

use weldment_ir::DType;

#[test]
fn dtypes_of_the_runtime_are_those_of_the_ir() {
    for dtype in DType::ALL.iter().filter(|d| **d != DType::Q8A) {
        let runtime = weldment_runtime::DType::from_name(dtype.name());
        let runtime = runtime.unwrap_or_else(|| panic!("the runtime lacks {dtype}"));
        let shape = [3, 512];
        assert_eq!(runtime.byte_size(&shape), dtype.byte_size(&shape).ok(), "{dtype}");
    }
}

#[test]
fn tail_rows_have_room_in_the_plan_and_in_the_session() {
    assert_eq!(weldment_passes::buffer::ROW_MULTIPLE, weldment_runtime::artifact::limits::ROW_MULTIPLE);
}
