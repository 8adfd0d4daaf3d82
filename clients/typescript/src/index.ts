/**
 * What programs use, wherever they run.
 *
 * @module
 */

export type { HandlerContext } from "./context.js";
export { Data, type EmitOptions, type RequestOptions } from "./emitter.js";
export {
  AddressError,
  Cancelled,
  Code,
  codeName,
  DeadlineExceeded,
  type ErrorDetails,
  ExchangeError,
  HandlerFailed,
  InvalidMessage,
  LimitExceeded,
  LinkError,
  Refused,
  RequestError,
  Unavailable,
  Unhandled,
} from "./errors.js";
export { AGENT, type ConnectOptions, Exchange, type ExchangeEvents, type ExchangeOptions } from "./exchange.js";
export type { Handler, Observer, Remove } from "./handlers.js";
export type { Limits } from "./limits.js";
export type { Logger } from "./log.js";
export type { Hop, KindName, Message } from "./message.js";
export { decodeJson, encodeJson, type Json } from "./payload.js";
export type { Peer } from "./peer.js";
export type { RemoteState, StateOptions, StateValue } from "./remote.js";
export type { Replies } from "./replies.js";
export type { Seen } from "./router.js";
export type { WhyAnswer } from "./system.js";
export type { Span, SpanEvent, TraceAnswer } from "./traces.js";
export { type Credentials, type Listener, type ListenOptions, register, type Scheme, type Transport } from "./transport.js";
