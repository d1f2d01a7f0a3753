// Package record turns the Records of watcher/tree into bytes, and chooses among them.
//
// A Writer numbers the records that pass its Filter, encodes them in one of the
// formats and writes once per batch.
//
// # Formats
//
//   - text: what inotifywait prints ("DIR/ EVENTS NAME"), but for a rename, which is one
//     line: "DIR/ RENAME OLD -> DIR2/NEW". A rename of which one side is not known is
//     MOVED_FROM or MOVED_TO.
//   - json: one object on each line, with the keys seq, time, type, path, old_path, cookie, is_dir
//     and pid; old_path, cookie and pid only where there is something to say.
//   - csv: the fields of a text line, quoted as inotifywait does it.
//   - msgpack: a map with the keys of json for each record; time is a timestamp.
//   - a template with the directives of inotifywait, see Template.
//
// Names are bytes. Text, csv and templates print them as they are. In json, a name that
// is not UTF-8 has U+FFFD for each bad byte in path, and stands whole in path_b64 (base64); old_path
// likewise. In msgpack such a name is a bin instead of a str.
package record
