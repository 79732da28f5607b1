<?php
// A jobgate worker in plain PHP: counts the bytes and words of a text. It speaks frames on stdin
// and stdout, without an SDK: `serve` is all that a worker needs.
//
// A frame: u32 length of all that follows, u8 version, u8 type, u16 flags, u32 id,
// u32 length of the meta, then the meta (JSON) and the body. Numbers are big-endian.
const HELLO = 1, COMMAND = 3, REPLY = 4, FAIL = 5, PING = 10, PONG = 11, DRAIN = 12;

function receive(int $count): string {
    for ($data = ''; strlen($data) < $count; $data .= $part) {
        $part = fread(STDIN, $count - strlen($data));
        if ($part === false || $part === '') {
            exit(0);  // the gate is gone
        }
    }
    return $data;
}

function send(int $type, int $id, array $meta = [], string $body = ''): void {
    $meta = $meta ? json_encode($meta, JSON_THROW_ON_ERROR | JSON_INVALID_UTF8_SUBSTITUTE) : '';
    $length = 12 + strlen($meta) + strlen($body);
    $frame = pack('NCCnNN', $length, 1, $type, 0, $id, strlen($meta)) . $meta . $body;
    for ($sent = 0; $sent < strlen($frame); $sent += $count) {
        $count = fwrite(STDOUT, substr($frame, $sent));
        if (!$count) {
            exit(1);
        }
    }
}

// $handler gets a body and returns [content type, body]. An InvalidArgumentException is the
// caller's fault (422), anything else that it throws the worker's (500).
function serve(callable $handler): never {
    // Nothing but frames may reach stdout: PHP's own words go to stderr, which the gate logs.
    ini_set('display_errors', 'stderr');
    ini_set('log_errors', '0');
    // A warning fails the command: half an answer is worse than none.
    set_error_handler(fn ($severity, $message, $file, $line) =>
        throw new ErrorException($message, 0, $severity, $file, $line));
    send(HELLO, 0, ['protocol' => 1, 'ordered' => true]);
    while (true) {
        $head = unpack('Nlength/Cversion/Ctype/nflags/Nid/Nmeta', receive(16));
        $meta = receive($head['meta']);
        $body = receive($head['length'] - 12 - $head['meta']);
        if ($head['type'] === COMMAND) {
            try {
                [$type, $reply] = $handler($body);
                send(REPLY, $head['id'], ['content_type' => $type], $reply);
            } catch (JsonException | InvalidArgumentException $error) {
                send(FAIL, $head['id'], ['title' => $error->getMessage(), 'status' => 422]);
            } catch (Throwable $error) {
                fwrite(STDERR, "$error\n");
                send(FAIL, $head['id'], ['title' => $error->getMessage()]);
            }
        } elseif ($head['type'] === PING) {
            send(PONG, $head['id']);
        } elseif ($head['type'] === DRAIN) {
            exit(0);
        }  // other types (WELCOME, CANCEL) ask nothing of a worker this simple
    }
}

function count_words(string $body): array {
    if (!preg_match('//u', $body)) {
        throw new InvalidArgumentException('the body is not UTF-8');
    }
    $words = preg_match_all('/[^ \t\n\v\f\r]+/', $body);
    return ['application/json', json_encode(['bytes' => strlen($body), 'words' => $words])];
}

if (realpath($_SERVER['SCRIPT_FILENAME']) === __FILE__) {  // not when it is required
    serve('count_words');
}
