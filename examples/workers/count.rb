# A jobgate worker in plain Ruby: counts the bytes and words of a text. It speaks frames on stdin
# and stdout, with what comes with Ruby.
#
# A frame: u32 length of all that follows, u8 version, u8 type, u16 flags, u32 id,
# u32 length of the meta, then the meta (JSON) and the body. Numbers are big-endian.
require 'json'

HELLO, COMMAND, REPLY, FAIL, PING, PONG, DRAIN = 1, 3, 4, 5, 10, 11, 12

# Nothing but frames may reach the real stdout: what is printed goes to stderr, which is logged.
GATE = $stdout.dup.binmode
GATE.sync = true
$stdout.reopen($stderr)
$stdin.binmode

def count_words(body)
  unless body.dup.force_encoding('UTF-8').valid_encoding?
    raise ArgumentError, 'the body is not UTF-8'
  end
  { bytes: body.bytesize, words: body.scan(/[^ \t\n\v\f\r]+/n).length }
end

def receive(count)
  data = count.zero? ? ''.b : $stdin.read(count)
  exit 0 if data.nil? || data.bytesize < count # the gate is gone
  data
end

def send_frame(type, id, meta = nil, body = '')
  meta = meta ? JSON.generate(meta) : ''
  length = 12 + meta.bytesize + body.bytesize
  head = [length, 1, type, 0, id, meta.bytesize].pack('NCCnNN')
  GATE.write(head + meta.b + body.b)
end

send_frame(HELLO, 0, { protocol: 1, ordered: true })
loop do
  length, _version, type, _flags, id, meta_length = receive(16).unpack('NCCnNN')
  _meta = receive(meta_length)
  body = receive(length - 12 - meta_length)
  case type
  when COMMAND
    begin
      reply = JSON.generate(count_words(body))
      send_frame(REPLY, id, { content_type: 'application/json' }, reply)
    rescue ArgumentError => e
      send_frame(FAIL, id, { title: e.message, status: 422 })
    rescue StandardError => e
      warn e.full_message
      send_frame(FAIL, id, { title: e.message })
    end
  when PING then send_frame(PONG, id)
  when DRAIN then exit 0
  end # other types (WELCOME, CANCEL) ask nothing of a worker this simple
end
