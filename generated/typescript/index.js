// Generated from proto/ by `make generate`. Do not edit.
export * from "./exchange/v1/frame_pb.js";
export * from "./exchange/v1/message_pb.js";
export * from "./exchange/v1/service_pb.js";
export * from "./google/rpc/status_pb.js";
export * from "./google/rpc/error_details_pb.js";
