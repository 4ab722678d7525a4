<?php
// The front page, and the front controller: what is no file and no script leads here, too.
declare(strict_types=1);
require __DIR__ . '/lib.inc.php';

// below the folder that this script is in, wherever the site is mounted
$base = rtrim(dirname($_SERVER['SCRIPT_NAME']), '/');
$path = substr((string) parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH), strlen($base));
if (!in_array($path, ['/', '/index.php'], true)) {
    if (preg_match('~\A/hello/([^/]+)\z~', $path, $match)) {
        page('Hello', '<p>Hello, ' . escaped(rawurldecode($match[1])) . '! There is no such file: this is what the'
            . ' front controller makes of the path.</p><p><a href="' . escaped($base) . '/">Back</a></p>');
        return;
    }
    http_response_code(404);
    page('Not found', '<p>The front controller knows no such page.</p><p><a href="' . escaped($base) . '/">Back</a></p>');
    return;
}

$version = escaped(PHP_VERSION);
page('A PHP site', <<<END
    <p>This tenant is of the kind <strong>fastcgi</strong>: PHP $version, by php-cgi, whose processes the tenant's supervisor
    starts and watches.</p>
    <ul>
    <li><a href="form.php">A form</a></li>
    <li><a href="upload.php">An upload</a></li>
    <li><a href="visits.php">A session</a>, which counts your visits</li>
    <li><a href="stream.php">A streamed answer</a>: 10 lines, one every 0.3 s</li>
    <li><a href="server.php/some/path?a=b">What a script is told</a>, with a path behind its name</li>
    <li><a href="hello/you">A page that is no file</a>: the front controller's</li>
    </ul>
    END);
