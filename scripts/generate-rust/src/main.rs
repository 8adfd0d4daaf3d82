//! Writes the Rust code of a descriptor set, which protoc made, into a folder.
//!
//! `generate-rust DESCRIPTORS FOLDER`. A program and not a build script: whoever uses the package needs
//! neither protoc nor this.

use std::{env, error::Error, fs, path::Path};

use prost::Message;
use prost_types::FileDescriptorSet;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args_os().skip(1);
    let (Some(descriptors), Some(folder)) = (arguments.next(), arguments.next()) else {
        return Err("generate-rust DESCRIPTORS FOLDER".into());
    };
    let set = FileDescriptorSet::decode(fs::read(descriptors)?.as_slice())?;
    tonic_prost_build::configure()
        .out_dir(Path::new(&folder))
        .bytes(".") // what is read shares the memory of the frame it came in
        .btree_map(".") // the same message is the same bytes
        .emit_rerun_if_changed(false)
        .compile_fds(set)?;
    Ok(())
}
