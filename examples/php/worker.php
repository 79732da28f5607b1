<?php
// A jobgate worker in plain PHP: it speaks frames on stdin and stdout, without an SDK.
//
// A frame: u32 length of all that follows, u8 version, u8 type, u16 flags, u32 id,
// u32 length of the meta, then the meta (JSON) and the body. Numbers are big-endian.
const HELLO = 1, COMMAND = 3, REPLY = 4, FAIL = 5, PING = 10, PONG = 11, DRAIN = 12;

// Nothing but frames may reach stdout: PHP's own words go to stderr, which the gate logs.
ini_set('display_errors', 'stderr');
ini_set('log_errors', '0');
// A warning fails the command: half a page is worse than none.
set_error_handler(fn ($severity, $message, $file, $line) =>
    throw new ErrorException($message, 0, $severity, $file, $line));

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

function run(string $page, string $body): string {
    $order = json_decode($body, true, 32, JSON_THROW_ON_ERROR);
    ob_start();  // what the page prints is the reply
    try {
        require $page;
        return ob_get_contents();
    } finally {
        ob_end_clean();
    }
}

send(HELLO, 0, ['protocol' => 1, 'ordered' => true]);
while (true) {
    $head = unpack('Nlength/Cversion/Ctype/nflags/Nid/Nmeta', receive(16));
    $meta = receive($head['meta']);
    $body = receive($head['length'] - 12 - $head['meta']);
    if ($head['type'] === COMMAND) {
        try {
            $html = run(__DIR__ . '/invoice.php', $body);
            send(REPLY, $head['id'], ['content_type' => 'text/html; charset=utf-8'], $html);
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
